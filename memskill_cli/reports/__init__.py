"""Reports: one self-contained ``report.html`` for a run and one for an evaluation, made from their files alone."""
