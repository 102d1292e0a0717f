"""Where processes and collectives live: FSDP ranks, Ray actors, weight sync. They move data; the method is elsewhere."""
