"""The report: reads the folder of a comparison or of watched runs, writes one HTML page.

    from gradwise.report import write_report
    write_report(Path("runs/demo"))             # runs/demo/report.html and runs/demo/report.md
    write_report(Path("runs/a"), Path("runs/b"))   # side by side, runs/a/report-a-b.html

It reads files only and knows nothing of training.
"""

from gradwise.report.write import write_report

__all__ = ["write_report"]
