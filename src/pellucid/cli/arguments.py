"""The parser of a subcommand's own arguments: what is wrong with them is one line, as everywhere."""

import argparse
from typing import NoReturn

from pellucid.errors import UserError


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, whose error is a UserError. `prog` is `pellucid SUBCOMMAND`."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.removeprefix('pellucid ')}: {message}: see {self.prog} --help")
