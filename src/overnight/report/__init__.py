"""What a run has come to, from its folder: history -> facts -> verdict, figures -> page, text."""
