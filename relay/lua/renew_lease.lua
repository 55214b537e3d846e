#!lua flags=allow-oom
-- Renew a worker's lease and say how the response is.
-- A full Redis must not cost a worker its lease: it frees nothing, and the answer would be cut.
-- KEYS 1 meta  2 journal  3 log  4 lease
-- ARGV 1 epoch  2 owner  3 lease_ms  4 retention_s  5 status (running or paused)  6 level
-- Returns {'OK', cancel ('' or '1')}, also when it has been closed or handed over under this epoch and
-- nothing is written; {'FENCED'} or {'GONE'}.
-- Atomic, because a worker that was stopped past its lease must not take it back from the next one.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'cancel', 'status')
if meta[1] ~= ARGV[1] then
  return {meta[1] and 'FENCED' or 'GONE'}
end
if meta[3] ~= 'running' and meta[3] ~= 'paused' then
  -- Closed or handed over by this worker while the renewal was on its way: there is no lease to renew,
  -- and to write one would revive what has ended.
  return {'OK', ''}
end
redis.call('SET', KEYS[4], ARGV[2], 'PX', ARGV[3])
redis.call('HSET', KEYS[1], 'status', ARGV[5], 'level', ARGV[6])
for i = 1, 3 do
  redis.call('EXPIRE', KEYS[i], ARGV[4])
end
return {'OK', meta[2] or ''}
