"""The words that describe Debian's packages, and the tags that its users gave them."""

import email
import re
import subprocess
from collections.abc import Iterator

from tools.program import Refusal, insist

from .facts import Facts, hashed

COMMAND = ("apt-cache", "dumpavail")
NAMES = re.compile(r"\s*[,|]\s*")  # between the packages of Depends, and between tags


def facts_of_packages() -> list[Facts]:
    """The facts of each package with tags that this machine's package lists hold."""
    try:
        ran = subprocess.run(COMMAND, capture_output=True, check=True)
    except FileNotFoundError:
        raise Refusal("--data debian needs the command apt-cache, of Debian and Ubuntu") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()
        raise Refusal(f"{' '.join(COMMAND)} failed: {said}") from None
    facts = list(facts_of_paragraphs(ran.stdout.decode(errors="replace")))
    insist(facts, f"{' '.join(COMMAND)} lists no package with tags; run apt-get update first")
    return facts


def facts_of_paragraphs(text: str) -> Iterator[Facts]:
    """The facts of each package with tags; of a name that occurs twice, those of the last."""
    # A paragraph has the form of an e-mail's header.
    tagged = map(email.message_from_string, (p for p in text.split("\n\n") if "\nTag:" in p))
    for fields in {one["Package"]: one for one in tagged}.values():
        words = re.findall(r"\w+", fields.get("Description", "").lower())
        # A name may come with a version and an architecture: libc6:any (>= 2.34).
        needed = [re.split(r"[\s:]", name)[0] for name in NAMES.split(fields.get("Depends", ""))]
        buckets = hashed([*words, *(f"needs {name}" for name in needed if name)])
        tags = sorted(set(NAMES.split(fields["Tag"].strip())) - {""})
        yield Facts(buckets, tags, source(fields.get("Source", fields["Package"])))


def source(field: str) -> str:
    """The name of a source without its version, also without one in the name: gcc-12 is gcc."""
    name = field.split()[0]
    return name.rstrip("-.0123456789") or name
