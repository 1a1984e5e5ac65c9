"""Reading a user's LightningModule: its hooks, steps, logs and optimizers."""
