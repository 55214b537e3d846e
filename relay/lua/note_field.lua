#!lua flags=allow-oom
-- Note a field of the meta, where every node and worker finds it: how a client does, what a worker has spent.
-- KEYS 1 meta
-- ARGV 1 field  2 value
-- Returns 1, or 0 when the response is gone.
-- Atomic, because a write to a meta that has just expired would make a key without a TTL.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
