"""Our side: what the scripts in workloads/ do, records and progress lines included."""

from assay.clock import now
from assay.ranks import session
from assay.training.course import set_up, training_tags
from assay.training.journal import Journal
from assay.training.loop import train_step
from benchmarks.rivals.bout import Bout, open_task
from benchmarks.rivals.turns import Turns, shared_folder


def run(bout: Bout, engine: str) -> None:
    """Train until there is no turn any more."""
    options = bout.training_options(engine).model_copy(update={"out": shared_folder()})
    tags = training_tags(options, model=options.model)
    with session(options, "benchmarks/rivals") as here:
        job = set_up(options, here, open_task(options, here.world), tags)
        journal = Journal(here, options, tags)
        turns = Turns(bout.steps, here.world.rank)
        turns.wait()
        last = now()
        for step in range(bout.total):
            taken = train_step(job, step)
            here.device.synchronize()
            end = now()
            journal.add(step, end - last, taken)
            last = end
            turns.end_of_step(taken.loss)
