"""A preference study: double-blind pairs in a browser, and what they say.

make: folders of videos ─► study/   study.json · media/   (neutral names, attention checks)
serve: study/ ─► a page ─► answers.sqlite          analyse: answers ─► table · JSON · HTML · pairs.jsonl
"""
