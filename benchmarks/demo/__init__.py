"""`hapi demo`: the whole story on one machine, without network and downloads."""
