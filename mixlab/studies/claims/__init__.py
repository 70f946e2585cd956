"""Claims: one sentence each, re-tested by a study and answered with figures.

claim_file   the file: a sentence, a study, and statements over its arms
verdict      supported, not supported or undecided, from the results of the study
answer       the verdict in words and as JSON
"""
