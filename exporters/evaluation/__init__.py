"""Offline evaluation of a bundle through the product's own pipeline; `recserve.exporters.evaluate` is the way in.

truth.py     what users did in the test window
users.py     who is evaluated: states at the cut-off, segments
requests.py  the placement's requests, as a server would resolve them
answers.py   the pipeline's lists, and those of the baselines
metrics.py   what a list is worth: pure functions over arrays
bootstrap.py how sure that is
results.py   the figures, as values and as JSON
page.py      the figures, as plots and tables
"""
