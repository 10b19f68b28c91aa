"""A scenario's cluster and engine resolved to what is simulated."""

from ttsim_des.deployment.resolve import Deployment, Setting, affine_step_model, deploy

__all__ = ["Deployment", "Setting", "affine_step_model", "deploy"]
