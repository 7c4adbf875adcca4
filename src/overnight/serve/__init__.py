"""A run in the browser and behind OpenAI's completions API: `overnight serve`."""
