-- Open a response: write its meta once.
-- KEYS 1 meta
-- ARGV 1 retention_s, then field, value, ... of the meta
-- Returns created_at (Unix seconds), or nil when the id exists: nothing has changed then.
-- Atomic, because two creates with one id must not mix their fields. The time is the server's.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return nil
end
local now = redis.call('TIME')
local created_at = now[1] .. '.' .. string.format('%06d', now[2])
redis.call('HSET', KEYS[1], 'created_at', created_at, 'epoch', '0', 'starts', '', unpack(ARGV, 2))
redis.call('EXPIRE', KEYS[1], ARGV[1])
return created_at
