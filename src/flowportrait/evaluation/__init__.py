"""Evaluation of finished videos: metrics, experts that took no part in training, statistics, reports, a benchmark.

    api ─► tracking ─► measure (lip_sync · behaviour · expression · theval · networks) ─► comparison ─► report

No reward and no training reads what judges here.
"""
