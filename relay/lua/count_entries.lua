-- Count the entries of the log that end after an offset.
-- KEYS 1 log
-- ARGV 1 offset
-- Returns the count; entries that the cap trimmed are not in the log and not counted.
-- A script only so that the entries themselves do not travel; the cap bounds the work.
return #redis.call('XRANGE', KEYS[1], '(' .. ARGV[1] .. '-18446744073709551615', '+')
