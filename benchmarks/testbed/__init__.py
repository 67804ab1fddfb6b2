"""Two hosts to measure on: a storage host with an S3 server and `hapi serve`, a compute host with the clients."""
