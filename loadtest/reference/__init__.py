"""The reference workloads: seeded bundles with users, a configuration and a scenario, for figures that compare.

recipe     which workloads there are, and what makes two of them the same
schema     100 features: 40 of user and context, 50 of items, 10 crosses
market     items and users
tower      the user tower
ranking    the forest, trained on what the space retrieves
build      all of it into a folder that is there as a whole or not at all
"""
