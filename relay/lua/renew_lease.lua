-- Renew a worker's lease and say how the response is.
-- KEYS 1 meta  2 journal  3 log  4 lease
-- ARGV 1 epoch  2 owner  3 lease_ms  4 retention_s  5 status (running or paused)  6 level
-- Returns {'OK', cancel ('' or '1')}, {'FENCED'} or {'GONE'}.
-- Atomic, because a worker that was stopped past its lease must not take it back from the next one.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'cancel')
if meta[1] ~= ARGV[1] then
  return {meta[1] and 'FENCED' or 'GONE'}
end
redis.call('SET', KEYS[4], ARGV[2], 'PX', ARGV[3])
redis.call('HSET', KEYS[1], 'status', ARGV[5], 'level', ARGV[6])
for i = 1, 3 do
  redis.call('EXPIRE', KEYS[i], ARGV[4])
end
return {'OK', meta[2] or ''}
