"""What the server keeps by digest: model archives, the graphs loaded from them, and manifests of datasets."""
