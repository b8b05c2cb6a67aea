-- Remove entries from the search index. KEYS: any key of the index. ARGV: beginning of its keys, entries.
for number = 2, #ARGV do unfile(ARGV[1], ARGV[number]) end
