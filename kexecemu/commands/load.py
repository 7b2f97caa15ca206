"""kexecemu load: load a crash image, print where everything lies, and stop."""

from pathlib import Path
from typing import Annotated

from kexecemu.commands.options import JsonOption, output, takes_setup
from kexecemu.commands.outputs import check_folder, print_json, print_written, writing
from kexecemu.scenario.options import Setup

__all__ = ["EXAMPLES", "load_command"]

EXAMPLES = """\
kexecemu load --ram 4G --cmdline crashkernel=512M
Where the segments lie on a larger machine.
kexecemu load --kernel fetched:kernel --dump-segments segments
Debian's kernel (kexecemu fetch kernel); each segment goes to segments/NAME.bin.
"""


@takes_setup("linux", "stuck_cpus")
def load_command(
    setup: Setup,
    dump_segments: Annotated[
        Path | None, output("--dump-segments", "Write each segment as loaded to DIR/NAME.bin.", metavar="DIR")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Load a crash image, print where everything lies, and stop."""
    from kexecemu.files import replace_file
    from kexecemu.scenario.setup import prepare

    check_folder("--dump-segments", dump_segments)
    kernel, image = prepare(setup)
    files: list[Path] = []
    if dump_segments is not None:
        with writing("--dump-segments", dump_segments):
            dump_segments.mkdir(parents=True, exist_ok=True)
            for segment in image.segments:
                files.append(dump_segments / f"{segment.name}.bin")
                replace_file(files[-1], kernel.ram.read(segment.mem, segment.memsz))
    if json:
        from kexecemu.report.json import load_object

        print_json(load_object(kernel, image, setup.seed), files)
    else:
        from kexecemu.report.terminal import account
        from kexecemu.report.text import print_layout

        print_layout(account(), kernel, image)
        print_written(files)
