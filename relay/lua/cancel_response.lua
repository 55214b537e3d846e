#!lua flags=allow-oom
-- Ask for a response to stop; its worker hears it on the control channel and with its next append.
-- KEYS 1 meta
-- ARGV 1 control (channel)
-- Returns the status as it is, or nil when there is no such response. Idempotent.
-- Allowed at maxmemory: it needs next to nothing, and lets work end.
-- Atomic, because the wish must not be noted on a response that has just ended.
local status = redis.call('HGET', KEYS[1], 'status')
if not status then
  return nil
end
if status ~= 'completed' and status ~= 'failed' and status ~= 'cancelled' then
  redis.call('HSET', KEYS[1], 'cancel', '1')
  redis.call('SPUBLISH', ARGV[1], 'cancel')
end
return status
