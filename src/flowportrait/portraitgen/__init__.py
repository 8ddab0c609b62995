"""Still portraits from text: what is wrong with them, by how much, and real photos in the groups that make them better.

    prompt ─► any generator ─► picture ─► look: face, landmarks, native size
                                            ├─► detectors ─► artefacts, by type        (measured)
                                            └─► rubrics: OmniReward, AI-Portrait ─► a judge's grades and artefacts
    bench:  prompts over a taxonomy ─► pictures ─► rates and grades with intervals
    flow:   a portrait flow small enough to be trained here, for the one trainer in ``posttrain``

After PortraitGen (2606.26930), whose rubrics, benchmark and figures are not public: the wording is ours.
"""
