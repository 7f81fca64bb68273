"""The former name of `build_report`, for those that still import it from here."""

from pipeline.report.build_report import HTML as HTML
from pipeline.report.build_report import MARKDOWN as MARKDOWN
from pipeline.report.build_report import report as report
