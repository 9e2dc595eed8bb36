"""Files as people have them: which folders are classes, which files are images; archives; shards made of them."""
