"""Intended differences from the published code that can change a score at equal settings.

``docs/reproducing.md`` has the same list with the reasons; a test compares the two.
"""

from __future__ import annotations

DEPARTURES = (
    "Prompts and the bodies of the seed skills are worded anew.",
    "New skills are explored with exactly the probability p_min.",
    "KL is estimated by r − 1 − log r, which is never negative.",
    "A run ends on its best stage, and no change is made that no training will judge.",
    "Rolling back restores the statistics of the skills; the controller keeps its weights.",
    "A verdict that cannot be read is asked again, then counted as an error and excluded from averages, never a 0.",
    "An answer that ends inside its reasoning is an error, never a score.",
    "A call that fails for good stops a training instead of leaving no memory.",
    "The last action of an executor reply that the token limit cut is rejected.",
    "A NOOP beside other actions of a reply is left out; an unreadable executor reply counts as all actions failed.",
    "Two actions on one memory are one: the first counts, and DELETE beats UPDATE.",
    "Only scored queries become hard cases, and one that is answered right later leaves the pool.",
    "The designer is also told of cycles that changed nothing, and of what was wrong with a refused reply.",
    "Training reads its conversations in shuffled order without replacement.",
    "Each episode has a random generator of its own, so a seed gives the same run at any concurrency.",
    "F1 also strips quotation marks and other punctuation of other scripts.",
    "The extracted answer is the first tag that is not empty; a tag that is never closed reaches to the end.",
    "A reply in a text game that is no admissible command is an invalid action, and look is played.",
    "Abstention questions are judged by a rule of their own, apart from the averages.",
)
