"""A simulated marketplace with models trained on it: a bundle to try recserve with, and to test it on.

words, sizes        what things are called; how much there is of everything
world, choice       items and users with their hidden tastes; how users respond to what they see
marketplace         sessions, impressions and events: the simulation
state               what is known of items and users at a moment
tables, known       the state as tables for the exporters, and read back as the server would know it
factors, towers     what retrieves: ALS factors, and networks distilled from them
features            the rankers' feature schema
examples, rankers   what ranks: forests, learnt from sessions
build               all of it in order, into a directory that can be served
"""
