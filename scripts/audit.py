"Ask pip-audit about everything that is pinned; known exceptions, each with a reason and a last day, are in .github/audit_exceptions.txt"
import argparse
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = 'constraints.txt', 'serve/requirements.txt', 'serve/openvino-requirements.txt', 'serve/build-requirements.txt'
EXCEPTION = re.compile(r'(?P<id>(?:GHSA|CVE|PYSEC)-[\w-]+) (?P<until>\d{4}-\d\d-\d\d) (?P<why>\S.{9,})')


def exceptions(text: str, today: date) -> list[str]:
    "The ids to leave out; ends with `SystemExit` at a line that is wrong or has run out"
    found = []
    for i, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith('#'): continue
        if not (m := EXCEPTION.fullmatch(line.strip())): raise SystemExit(f'audit.py: line {i} of the exceptions is {line!r}, but must be an id, a day such as 2027-01-31 and a reason')
        if date.fromisoformat(m['until']) < today: raise SystemExit(f'audit.py: the exception for {m["id"]} ended on {m["until"]}: is there a fix by now?')
        found.append(m['id'])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--dry_run', action='store_true', help='only list what would be asked about')
    args = parser.parse_args()
    command = shutil.which('pip-audit', path=str(Path(sys.executable).parent)) or shutil.which('pip-audit')
    if not command: raise SystemExit('audit.py: pip-audit is not installed: run `make env`')
    ignored = [word for id in exceptions((ROOT/'.github/audit_exceptions.txt').read_text(), date.today()) for word in ('--ignore-vuln', id)]
    # Each file by itself: one pip-audit takes hashes either everywhere or nowhere.
    failed = [name for name in PINS if subprocess.run(
        [command, '--disable-pip', '--no-deps', '--strict', '--progress-spinner', 'off', *ignored, *['--dry-run'] * args.dry_run, '--requirement', ROOT/name]).returncode]
    if failed: raise SystemExit(f'audit.py: look into {", ".join(failed)}')


if __name__ == '__main__': main()
