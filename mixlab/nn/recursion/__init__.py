"""Models that apply the same blocks many times, and the halting that decides how often."""
