"""A panel that looks at talking portraits and grades them 1 to 5: specialists, a reviewer, an aggregator.

    exhibit ─► evidence per aspect ─► specialists × samples ─► reviewer, where they disagree ─► verdict
                                          │ a server · a model in this process
               measured experts ──────────┴──────────────────────────────────────────────────► verdict

``judges.build_judge`` makes one from settings; ``sanity`` says whether it may be trained on.
"""
