"""Recording a training step and replaying it; only the engines that do so need to look in here."""
