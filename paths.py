"""Folders that Java, Kafka and Flink can use: the rule for RUN_DIR and the project's own folder.

Set-up applies the rule before any package is installed, so this module imports nothing.
"""

# Java separates class paths by colons, Kafka and Flink separate lists by commas and semicolons,
# and all three treat a backslash and ${ specially.
MISREAD = {
    "a colon": ":",
    "a comma": ",",
    "a semicolon": ";",
    "a backslash": "\\",
    "${": "${",
}
MAX_BYTES = 3_000  # the system allows 4,096, and the files below the folder need the rest


def why_unusable(folder: str) -> str:
    """Return in one sentence why the folder can't be used, or an empty string if it can."""
    problem = _problem(folder)
    return f"{folder!a} {problem}: choose another folder" if problem else ""


def _problem(folder: str) -> str:
    for name, text in MISREAD.items():
        if text in folder:
            return f"holds {name}, which Java, Kafka or Flink would misread"
    if any(ord(character) < 32 or ord(character) == 127 for character in folder):
        return "holds a control character"
    if any("\ud800" <= character <= "\udfff" for character in folder):
        return "is not UTF-8"
    if len(folder.encode()) > MAX_BYTES:
        return f"is longer than {MAX_BYTES:,} bytes"
    return ""
