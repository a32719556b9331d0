"""From trained models and tables to bundles and user snapshots.

    spec, specfile          what an export is made of, in Python and in TOML; consistency: whether that can be
    export                  one export from beginning to end
    quality                 a gate for tables of events, before anything is trained on them
    tables, catalogue       the item table                 snapshot    users and their history
    towers, spaces, indexes vectors and how they are found
    ranker                  forests: lightgbm_text (what the model says), tl2cgen_library (its code),
                            forest_parity (that both agree), calibration (margin to relevance)
    oracle, golden          what the bundle must answer, from the source models
    writer                  one directory, all or nothing
    report, inspect         what came out, for people; report_page and figures make report.html
    demo                    a simulated marketplace with models trained on it

Everything is validated against its source before a bundle gets its name.
"""
