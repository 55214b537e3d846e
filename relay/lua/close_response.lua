#!lua flags=allow-oom
-- End a response: append its last records and write how it ended.
-- Also at maxmemory: an answer that ends is what frees memory.
-- KEYS 1 meta  2 journal  3 log  4 lease
-- ARGV 1 epoch  2 base  3 the bytes  4 retention_s  5 bell (channel), then field, value, ... of the meta (status first)
-- Returns {'OK', head}, also when it was closed already under this epoch; {'FENCED'}, {'GAP', head}, {'GONE'}.
-- Atomic, because a reader that sees the terminal event must find the status terminal, and the reverse.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'status')
if meta[1] ~= ARGV[1] then
  return {meta[1] and 'FENCED' or 'GONE'}
end
local head = redis.call('STRLEN', KEYS[2])
local status = meta[2]
if status == 'completed' or status == 'failed' or status == 'cancelled' then
  return {'OK', head}
end
local base = tonumber(ARGV[2])
if base ~= head then
  -- Either a failover lost bytes, or an append whose reply was lost had run: the writer goes on from head.
  return {'GAP', head}
end
local now = redis.call('TIME')
head = head + #ARGV[3]
redis.call('XADD', KEYS[3], head .. '-' .. ARGV[1],
  'd', ARGV[3], 't', now[1] .. '.' .. now[2])
redis.call('APPEND', KEYS[2], ARGV[3])
redis.call('HSET', KEYS[1], 'ended_at', now[1] .. '.' .. string.format('%06d', now[2]), unpack(ARGV, 6))
redis.call('HDEL', KEYS[1], 'request')
redis.call('DEL', KEYS[4])
for i = 1, 3 do
  redis.call('EXPIRE', KEYS[i], ARGV[4])
end
redis.call('SPUBLISH', ARGV[5], head)
return {'OK', head}
