#!lua flags=allow-oom
-- After a break of the connection: put a consumer back to what its client has confirmed.
-- KEYS 1 log
-- ARGV 1 consumer (the group)  2 connection (its member)  3 the confirmed offset
-- Returns 1; 0 when a newer connection has the consumer; -1 when the log or the group is gone.
-- Atomic, because a newer connection may attach between the look and the write.
--
-- A read whose reply was lost has left entries pending that nobody will acknowledge, and so has an XACK that
-- was lost: they would hold the consumer's place for ever.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return -1
end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  if group[2] == ARGV[1] then
    for _, member in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
      if member[2] == ARGV[2] then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
        redis.call('XGROUP', 'CREATECONSUMER', KEYS[1], ARGV[1], ARGV[2])
        redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], ARGV[3] .. '-18446744073709551615')
        return 1
      end
    end
    return 0
  end
end
return -1
