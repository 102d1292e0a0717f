"""Peer context: who of a group is shown to the teacher, how it reads, and what fits (design 5)."""

from trainer.peers.metrics import metrics
from trainer.peers.render import Cut, TeacherPrompt, render
from trainer.peers.select import Peer, PeerContext, is_failure, is_success, select, wanted

__all__ = ["Cut", "Peer", "PeerContext", "TeacherPrompt", "is_failure", "is_success", "metrics", "render", "select", "wanted"]
