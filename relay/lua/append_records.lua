-- Append encoded records to a response and ring its bell with the new head.
-- KEYS 1 meta  2 journal  3 log
-- ARGV 1 epoch  2 base (the offset where the bytes belong)  3 the bytes  4 cap of the log  5 retention_s
--      6 bell (a channel, which is no key: as one it would be missing on both sides of a slot that moves)
-- Returns the new head (an integer): also when the bytes were there already, so a retry is safe. Or
-- {'FENCED'}, {'GAP', head} (the journal ends before base), {'GONE'}, {'CANCEL', head} (appended, and
-- somebody wants it to stop).
-- Atomic, because the log and the journal must never disagree and the fence must hold at the write.
-- The entry that ends at byte N has the ID N-<epoch>; its fields are d, the bytes, and t, the server's
-- time as SECONDS.MICROSECONDS, unpadded: formatting costs more than writing. The cap trims in whole nodes (~): readers repair the hole from the journal.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'cancel')
if meta[1] ~= ARGV[1] then
  return {meta[1] and 'FENCED' or 'GONE'}
end
local head = redis.call('STRLEN', KEYS[2])
local base = tonumber(ARGV[2])
if base == head then
  local now = redis.call('TIME')
  local last = head
  head = head + #ARGV[3]
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], head .. '-' .. ARGV[1],
    'd', ARGV[3], 't', now[1] .. '.' .. now[2])
  redis.call('APPEND', KEYS[2], ARGV[3])
  if last == 0 then
    redis.call('EXPIRE', KEYS[2], ARGV[5])
    redis.call('EXPIRE', KEYS[3], ARGV[5])
  end
  redis.call('SPUBLISH', ARGV[6], head)
elseif base > head then
  return {'GAP', head}
end
if meta[2] then
  return {'CANCEL', head}
end
return head
