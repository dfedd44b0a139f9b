"""Reports: a self-contained ``report.html`` for a run and for an evaluation, made from their files only."""
