"""What a coding agent wraps around its user's words, and how to take it off. Pure functions on text.

Agents send reminders, the state of the editor, whole files and the output of their tools inside the user's
turn. A classifier that reads those routes every request of such an agent to whatever the harness talks about.
"""

from __future__ import annotations

import re

KEEP_FENCE_CHARS = 600  # a longer code block is a dump: its first lines tell the language, the rest is noise
KEEP_HEAD_CHARS = 240
KEEP_LISTING_LINES = 12  # numbered, diff or log lines in a row beyond which a listing is a dump

# The user's own words, marked as such by the agent: where one of these is there, nothing else counts.
_WISH_TAGS = (
    "user_query", "user_message", "user_request", "userrequest", "user_input", "task", "feedback", "question",
)  # fmt: skip

# What the harness adds. The content goes with the tag.
_HARNESS_TAGS = (
    "system-reminder", "system_reminder", "environment_details", "environment_context", "environment",
    "user_info", "user_rules", "user_instructions", "cursor_rules", "rules", "instructions", "reminder",
    "reminderinstructions", "additional_data", "attached_files", "attached_file", "attachments",
    "attachment", "open_files", "open_and_recently_viewed_files", "current_file", "file_content",
    "file_contents", "file", "files", "document", "documents", "editor_context", "editorcontext", "context",
    "project_layout", "project_structure", "workspace_info", "repository_info", "git_status", "git_diff",
    "diagnostics", "linter_errors", "terminal_output", "command-name", "command-message", "command-args",
    "local-command-stdout", "local-command-stderr", "stdout", "stderr", "bash-stdout", "bash-stderr",
    "tool_result", "tool_results", "tool_response", "tool_output", "tool_call", "function_results",
    "function_result", "function_calls", "search_results", "web_search_results", "memory", "memories",
    "todo_list", "available_skills", "timestamp", "selected_code", "selection",
)  # fmt: skip

_OPEN_TAG = re.compile(
    rf"<({'|'.join(re.escape(tag) for tag in (*_WISH_TAGS, *_HARNESS_TAGS))})(?=[\s>])[^<>]{{0,400}}>", re.I
)
_FENCE_LINE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})", re.M)
_LISTING_LINE = re.compile(
    r"[ \t]*\d{1,6}(?:→|\t| ?\| )"  # numbered source
    r"|@@ |\+(?!\s*\d+[ ,.)])|-(?![ \d])"  # a diff
    r"|[ \t]*at \S+ ?\("  # a stack trace
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d|\[\d{2}:\d{2}"  # a log
)
_TOOL_TURN = re.compile(
    r"\s*(?:\[[\w.-]+(?: for '[^'\n]{0,300}')?\] Result:"
    r"|(?:Tool (?:output|result)s?|OBSERVATION|Observation):)"
)
_BLANKS = re.compile(r"\n{3,}")


def strip(text: str) -> str:
    """The user's words in `text`, without harness tags, large code blocks and listings; may be empty."""
    if "<" in text:
        text = _untag(text)
    if _TOOL_TURN.match(text):
        return ""
    if "```" in text or "~~~" in text:
        text = _shorten_fences(text)
    if text.count("\n") > KEEP_LISTING_LINES:
        text = _shorten_listings(text)
    if "\n\n\n" in text:
        text = _BLANKS.sub("\n\n", text)
    return text.strip()


def _untag(text: str) -> str:
    """Cut harness elements out; where an element holds the user's own words, return only those.

    An unclosed tag loses its tag only. Linear in the text: a tag found unclosed is not searched for again.
    """
    outside: list[str] = []
    wishes: list[str] = []
    lowered = text.lower()
    unclosed: set[str] = set()
    position = 0
    while match := _OPEN_TAG.search(text, position):
        tag = match.group(1).lower()
        outside.append(text[position : match.start()])
        position = match.end()
        if tag in unclosed:
            continue
        close = lowered.find(f"</{tag}>", position)
        if close < 0:
            unclosed.add(tag)
            continue
        if tag in _WISH_TAGS and (inner := text[position:close].strip()):
            wishes.append(inner)
        position = close + len(tag) + 3
    outside.append(text[position:])
    return "\n".join(wishes) if wishes else "".join(outside)


def _shorten_fences(text: str) -> str:
    """Keep the first lines of a large code block; an unclosed one reaches to the end of the text."""
    kept: list[str] = []
    position = 0
    while opening := _FENCE_LINE.search(text, position):
        fence = opening.group(1)
        closing = text.find("\n" + fence, opening.end())
        end = len(text) if closing < 0 else closing
        block = text[opening.start() : end]
        if len(block) > KEEP_FENCE_CHARS:
            block = block[:KEEP_HEAD_CHARS].rsplit("\n", 1)[0]
        kept += [text[position : opening.start()], block, "\n" + fence]
        position = end if closing < 0 else closing + 1 + len(fence)
    kept.append(text[position:])
    return "".join(kept)


def _shorten_listings(text: str) -> str:
    """Shorten runs of numbered, diff, log or stack-trace lines to their first few."""
    kept: list[str] = []
    run: list[str] = []

    def flush() -> None:
        kept.extend(run if len(run) <= KEEP_LISTING_LINES else run[:3])
        run.clear()

    for line in text.split("\n"):
        if _LISTING_LINE.match(line):
            run.append(line)
        else:
            flush()
            kept.append(line)
    flush()
    return "\n".join(kept)
