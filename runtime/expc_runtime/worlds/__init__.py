"""World models: networks, latent dynamics and behaviour learned in imagination."""
