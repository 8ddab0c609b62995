"""Judges that look at talking portraits, or at still ones, and grade them 1 to 5.

    clip ─► question per aspect ─► specialists × samples ─► reviewer, where they disagree ─► verdict
                                       │ a server · a model in this process
            measured experts ──────────┴──────────────────────────────────────────────────► verdict

    rubric     what a grade means                     judges       from settings, by name; reports; as a reward
    clips      what is judged, what is shown          panel        specialists, reviewer, aggregation
    questions  asking, cache, ledger                  methods      think, locate, compare
    replies    a model's reply, read                  measured     experts instead of a model
    answers    the forms of an answer                 calibration  scores beside human ones
    client     a model behind an address              learning     a rubric that learns from preferences
    omni       a model in this process                sanity       who may be trained on
    server     the panel and rewards over HTTP

``judges.build_judge`` makes a judge from settings; ``sanity`` says whether it may be trained on.
"""
