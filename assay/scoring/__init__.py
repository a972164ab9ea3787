"""From records to figures to scores. Never imports torch: a lab reads run folders on a laptop."""
