"""HTTP around the service: the application, its routes, error answers, and answers that are streamed."""
