"""kexecemu load: load a crash image, print where everything lies, and stop."""

from pathlib import Path
from typing import Annotated

from kexecemu.commands.options import JsonOption, option, output, takes_setup
from kexecemu.commands.outputs import Written, check_folder, input_files, print_json, print_written
from kexecemu.errors import InputError
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
    no_load: Annotated[
        bool, option("--no-load", "Boot only: the reservation, and what there is of it.", None)
    ] = False,
    json: JsonOption = False,
) -> None:
    """Load a crash image, print where everything lies, and stop."""
    from kexecemu.files import replace_file
    from kexecemu.folders import replacing_folder
    from kexecemu.scenario.setup import boot

    if no_load and dump_segments is not None:
        raise InputError("--no-load: there are no segments for --dump-segments")
    check_folder("--dump-segments", dump_segments, ["*.bin"], input_files(setup))
    booted = boot(setup)
    kernel, image = (booted.kernel, None) if no_load else booted.load()
    written = Written()
    if dump_segments is not None and image is not None:
        with written.writing("--dump-segments", dump_segments):
            with replacing_folder(dump_segments) as folder:
                for segment in image.segments:
                    data = kernel.ram.read(segment.mem, segment.memsz)
                    replace_file(folder / f"{segment.name}.bin", data)
            written.files += [dump_segments / f"{segment.name}.bin" for segment in image.segments]
    if json:
        from kexecemu.report.json import load_object

        said = booted.file_warnings(image) if image is not None else []
        print_json(load_object(kernel, image, setup.seed, said), written.files)
    else:
        from kexecemu.report.terminal import account
        from kexecemu.report.text import print_layout

        print_layout(account(), kernel, image)
        print_written(written.files)
    written.exit()
