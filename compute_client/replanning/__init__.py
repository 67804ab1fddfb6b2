"""Plans that follow: rates are measured while a job runs, and the mix of cuts is solved anew when they have changed."""
