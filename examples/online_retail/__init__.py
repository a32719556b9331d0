"""From a shop's transactions to an evaluated server: the retail example. See README.md.

clean      transactions as exported -> purchases
split      cut-offs: training windows, validation, test
items, users    what is known at a cut-off
content    descriptions -> TF-IDF, SVD, categories
als        purchases -> factors
twotower   purchases, descriptions, numbers -> two networks
features   the ranker's feature schema
moment     all of these at one cut-off -> a bundle without a ranker
ranker     bundles at several cut-offs -> a lambdarank forest
run        all of it in order
"""
