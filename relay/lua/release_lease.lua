#!lua flags=allow-oom
-- Hand a response over: give up the lease, so that the next worker need not wait for it to expire.
-- KEYS 1 meta  2 lease
-- ARGV 1 epoch  2 owner
-- Returns 1, or 0 when the lease was not this owner's.
-- Allowed at maxmemory: it needs next to nothing, and lets work end.
-- Atomic, because the lease may have passed to another between a look and a delete.
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], 'status', 'queued')
return redis.call('DEL', KEYS[2])
