"""Prompt extension."""
from kinograph.preprocess.prompts.extend import METHODS, ExtendedPrompt, PromptExtender, extend_prompt

__all__ = ["METHODS", "ExtendedPrompt", "PromptExtender", "extend_prompt"]
