"""The report: reads the folder of a compare run, writes one HTML page and its Markdown twin.

    from gradwise.report import write_report
    write_report(Path("runs/demo"))   # runs/demo/report.html and runs/demo/report.md

It reads files only and knows nothing of training.
"""

from gradwise.report.render import write_report

__all__ = ["write_report"]
