"""World models: networks over images, latent dynamics, and behaviour learned in imagination."""
