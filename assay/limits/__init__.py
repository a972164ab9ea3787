"""What a device can do at most, as raw times of work that does nothing else. Rates are derived by readers."""
